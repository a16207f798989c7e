variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-existing-bucket-and-role"
}

variable "environment" {
  description = "Environment variables of the container."
  type        = map(string)
  default     = {}
}

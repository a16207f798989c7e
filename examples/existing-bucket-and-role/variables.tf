variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-existing-bucket-and-role"
}

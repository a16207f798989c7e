variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-minimal"
}

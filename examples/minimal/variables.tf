variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-minimal"
}

variable "instance_type" {
  description = "Instance type, CPU or GPU."
  type        = string
  default     = "ml.m5.xlarge"
}

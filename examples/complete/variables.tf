variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-complete"
}

variable "instance_type" {
  description = "Instance type. It can be changed while the endpoint scales by itself."
  type        = string
  default     = "ml.m5.xlarge"
}

variable "emails" {
  description = "Who gets mail when an alarm goes off. Each address has to confirm."
  type        = set(string)
  default     = ["ml-oncall@example.com"]
}

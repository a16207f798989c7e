variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-vpc-kms"
}

variable "more_security_group_ids" {
  description = "Security groups for the instances beside the example's own."
  type        = list(string)
  default     = []
}

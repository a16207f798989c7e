variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-ab-variants"
}

variable "challenger" {
  description = "The machine to compare with the baseline, and its part of the traffic against the baseline's 9. Null to take it away."
  type = object({
    instance_type = string
    weight        = optional(number, 1)
  })
  default = { instance_type = "ml.c5.2xlarge" }
}

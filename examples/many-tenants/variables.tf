variable "name" {
  description = "Name of the endpoint."
  type        = string
  default     = "mme-many-tenants"
}

variable "tenants" {
  description = "Names of the tenants."
  type        = set(string)
  default     = ["team-a", "team-b"]
}

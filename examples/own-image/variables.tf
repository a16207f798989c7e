variable "name" {
  description = "Name of the endpoint and of the image repository."
  type        = string
  default     = "mme-own-image"
}

variable "image_tag" {
  description = "Tag of the image to run. It has to be in the repository before the endpoint is created."
  type        = string
  default     = "0.1.0"
}

variable "environment" {
  description = "Environment variables of the container."
  type        = map(string)
  default     = {}
}

variable "revision" {
  description = "Any text; a new one makes everything anew with the same settings."
  type        = string
  default     = ""
}

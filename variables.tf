variable "create" {
  description = "Whether to create anything at all. With `false` the module is there and empty, and its outputs are null."
  type        = bool
  default     = true
  nullable    = false
}

variable "name" {
  description = "Name of the endpoint, and the beginning of every other name. Longer names than AWS takes are shortened and end in a hash."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-zA-Z0-9](-?[a-zA-Z0-9])*$", var.name))
    error_message = "name is \"${var.name}\". Use letters, digits and single hyphens, beginning and ending with a letter or a digit."
  }
}

variable "tags" {
  description = "Tags for every resource that takes them."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "image_uri" {
  description = "Container image, for instance your own in ECR. It must carry the label `com.amazonaws.sagemaker.capabilities.multi-models=true`. Null for the Hugging Face inference image that `huggingface` describes."
  type        = string
  default     = null
}

variable "huggingface" {
  description = "Versions that make up the tag of AWS's Hugging Face inference image. CPU or GPU follows from each variant's instance type."
  type = object({
    pytorch_version      = optional(string, "2.6.0")
    transformers_version = optional(string, "5.5.3")
    python_version       = optional(string, "py312")
    cuda_version         = optional(string, "cu124")
    os_version           = optional(string, "ubuntu22.04")
  })
  default  = {}
  nullable = false
}

variable "environment" {
  description = "Environment variables of the container in every variant."
  type        = map(string)
  default     = {}
  nullable    = false
}

variable "model_cache_enabled" {
  description = "Whether SageMaker keeps models in memory after use. `false` loads and unloads a model with every call: right only for many models that are each called rarely."
  type        = bool
  default     = true
  nullable    = false
}

variable "network_isolation" {
  description = "Whether the containers are cut off from the network. SageMaker itself fetches the archives, so models load all the same; a handler that calls other services or installs packages at start needs `false`."
  type        = bool
  default     = true
  nullable    = false
}

variable "variants" {
  description = "Production variants by name. Several of them share the traffic by weight; all serve the models under the one prefix."
  type = map(object({
    instance_type  = optional(string, "ml.m5.xlarge")
    instance_count = optional(number, 1)
    weight         = optional(number, 1)
    image_uri      = optional(string)
    environment    = optional(map(string), {})
  }))
  default  = { primary = {} }
  nullable = false
}

variable "volume_kms_key_arn" {
  description = "ARN of the KMS key for the instances' storage volumes. Null for AWS's own key."
  type        = string
  default     = null
}

variable "bucket" {
  description = "The bucket that holds the archives. With `create = false`, `name` is one that exists."
  type = object({
    create        = optional(bool, true)
    name          = optional(string)
    force_destroy = optional(bool, false)
    kms_key_arn   = optional(string)
  })
  default  = {}
  nullable = false
}

variable "model_prefix" {
  description = "Prefix of the archives in the bucket, ending in a slash. The endpoint serves every archive below it and reads nothing else."
  type        = string
  default     = "models/"
  nullable    = false

  validation {
    condition     = can(regex("^([a-zA-Z0-9._-]+/)+$", var.model_prefix))
    error_message = "model_prefix is \"${var.model_prefix}\". Give a path of letters, digits, dots, hyphens and underscores that ends in a slash, such as \"models/\"."
  }
}

variable "role" {
  description = "The execution role. With `create = false`, `arn` is one that exists."
  type = object({
    create                   = optional(bool, true)
    arn                      = optional(string)
    name                     = optional(string)
    path                     = optional(string, "/")
    permissions_boundary_arn = optional(string)
  })
  default  = {}
  nullable = false
}

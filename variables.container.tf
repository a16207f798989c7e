# What runs

variable "image_uri" {
  description = "Container image in ECR, in the endpoint's region, with its tag or digest, for instance your own. It must carry the label `com.amazonaws.sagemaker.capabilities.multi-models=true`. Null for AWS's Hugging Face inference image, as `huggingface` describes it."
  type        = string
  default     = null

  validation {
    condition     = var.image_uri == null || can(regex(local.patterns.ecr_image, var.image_uri))
    error_message = "image_uri is \"${coalesce(var.image_uri, "null")}\". SageMaker takes images from ECR: ACCOUNT.dkr.ecr.REGION.amazonaws.com/REPOSITORY:TAG, or @sha256:DIGEST in place of :TAG."
  }
}

variable "huggingface" {
  description = "Versions that make up the tag of AWS's Hugging Face inference image. CPU or GPU follows from each variant's instance type. Not used where an image URI is given."
  type = object({
    pytorch_version      = optional(string, "2.6.0")
    transformers_version = optional(string, "5.5.3")
    python_version       = optional(string, "py312")
    cuda_version         = optional(string, "cu124")
    os_version           = optional(string, "ubuntu22.04")
  })
  default  = {}
  nullable = false

  validation {
    condition     = can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.huggingface.pytorch_version)) && can(regex("^[0-9]+\\.[0-9]+\\.[0-9]+$", var.huggingface.transformers_version))
    error_message = "huggingface.pytorch_version is \"${var.huggingface.pytorch_version}\" and huggingface.transformers_version is \"${var.huggingface.transformers_version}\". Give full versions, such as \"2.6.0\" and \"5.5.3\". AWS lists which of them there are images for."
  }

  validation {
    condition     = can(regex("^py3[0-9]+$", var.huggingface.python_version)) && can(regex("^cu[0-9]+$", var.huggingface.cuda_version)) && can(regex("^[a-z]+[0-9.]+$", var.huggingface.os_version))
    error_message = "huggingface.python_version, cuda_version and os_version are \"${var.huggingface.python_version}\", \"${var.huggingface.cuda_version}\" and \"${var.huggingface.os_version}\". They are written as in the image's tag, such as \"py312\", \"cu124\" and \"ubuntu22.04\"."
  }
}

variable "environment" {
  description = "Environment variables of the container in every variant, for instance `{ SAGEMAKER_MODEL_SERVER_WORKERS = \"2\" }`, 100 at most. A null value counts as no variable. Not a place for secrets: whoever may describe the model can read them."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length(var.environment) <= 100
    error_message = "environment has ${length(var.environment)} entries; SageMaker takes 100."
  }

  validation {
    condition     = length([for key in keys(var.environment) : key if !can(regex(local.patterns.variable, key))]) == 0
    error_message = "environment: the name of a variable has letters, digits and underscores, does not begin with a digit, and is at most 1024 characters long. Rename ${join(", ", [for key in keys(var.environment) : "\"${key}\"" if !can(regex(local.patterns.variable, key))])}."
  }

  validation {
    condition     = length([for key, value in var.environment : key if try(length(value) > 1024, false)]) == 0
    error_message = "environment: SageMaker takes values of at most 1024 characters. Too long: ${join(", ", [for key, value in var.environment : key if try(length(value) > 1024, false)])}. Longer text belongs in the archive."
  }
}

variable "model_cache_enabled" {
  description = "Whether SageMaker keeps models in memory after use. `false` loads and unloads a model with every call: right only for very many models that are each called rarely."
  type        = bool
  default     = true
  nullable    = false
}

# The inputs: general ones here, the others by concern in variables.*.tf.
#
# A validation that looks into a map names the keys at fault: its condition is that the list of them is empty, and its
# message has the list. `try(…, false)` in such a list passes over an entry that is null, for which there is a validation
# of its own. What several validations are held to is in constants.tf.

variable "create" {
  description = "Whether to create anything at all. With `false` the module creates nothing, and its outputs are null or empty."
  type        = bool
  default     = true
  nullable    = false
}

variable "name" {
  description = "Name of the endpoint, and the beginning of every other name. Where AWS allows fewer characters, the name is cut and ends in a hash of the whole."
  type        = string
  nullable    = false

  validation {
    condition     = can(regex("^[a-zA-Z0-9](-?[a-zA-Z0-9])*$", var.name))
    error_message = "name is \"${var.name}\". Use letters, digits and single hyphens, beginning and ending with a letter or a digit."
  }
}

variable "revision" {
  description = "Any text. A new value makes a new model and endpoint configuration with the same settings: for a moved image tag, or to go back to earlier settings after an update that AWS rolled back (see docs/module.md)."
  type        = string
  default     = ""
  nullable    = false
}

variable "tags" {
  description = "Tags for every resource that takes them, beside the provider's `default_tags`. A null value counts as no tag."
  type        = map(string)
  default     = {}
  nullable    = false

  validation {
    condition     = length([for value in values(var.tags) : true if nonsensitive(value != null)]) <= 50
    error_message = "tags has ${length([for value in values(var.tags) : true if nonsensitive(value != null)])} entries; AWS allows 50 on a resource."
  }

  validation {
    condition     = length([for key in keys(var.tags) : key if startswith(lower(key), "aws:") || length(key) == 0 || length(key) > 128]) == 0
    error_message = "tags: AWS keeps keys that begin with \"aws:\" for itself, and a key has 1 to 128 characters. Rename ${join(", ", [for key in keys(var.tags) : "\"${key}\"" if startswith(lower(key), "aws:") || length(key) == 0 || length(key) > 128])}."
  }

  validation {
    condition     = length([for key, value in var.tags : key if try(length(value) > 256, false)]) == 0
    error_message = "tags: a value has at most 256 characters. Too long: ${join(", ", [for key, value in var.tags : key if try(length(value) > 256, false)])}."
  }
  validation {
    condition     = length([for key, value in var.tags : key if !can(regex(local.patterns.tag, key)) || !can(regex(local.patterns.tag, value != null ? value : ""))]) == 0
    error_message = "tags: AWS takes letters, digits, spaces and _ . : / = + - @ in keys and values, in any language. Something else is in ${join(", ", [for key, value in var.tags : "\"${key}\"" if !can(regex(local.patterns.tag, key)) || !can(regex(local.patterns.tag, value != null ? value : ""))])}."
  }

  validation {
    condition     = length(distinct([for key in keys(var.tags) : lower(key)])) == length(var.tags)
    error_message = "tags has keys that differ in capitals only, which are one key for IAM. Rename one of ${join(", ", [for key in keys(var.tags) : "\"${key}\"" if length([for other in keys(var.tags) : other if lower(other) == lower(key)]) > 1])}."
  }
}

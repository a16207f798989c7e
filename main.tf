data "aws_caller_identity" "current" {
  count = var.create ? 1 : 0
}

data "aws_partition" "current" {
  count = var.create ? 1 : 0
}

data "aws_region" "current" {
  count = var.create ? 1 : 0
}

# Makes no API call: the provider carries the registries' account numbers.
data "aws_sagemaker_prebuilt_ecr_image" "this" {
  for_each = local.dlc_tags

  repository_name = "huggingface-pytorch-inference"
  image_tag       = each.value
  # The data source's own default knows only amazonaws.com.
  dns_suffix = data.aws_partition.current[0].dns_suffix
}

locals {
  account_id = one(data.aws_caller_identity.current[*].account_id)
  partition  = one(data.aws_partition.current[*].partition)
  # `id` reads the same in provider 5 and 6; `name` is deprecated in 6 and `region` is missing in 5.
  region = one(data.aws_region.current[*].id)

  # Endpoint, model and endpoint configuration names hold 63 characters. A name that is too long keeps its
  # beginning and gets eight characters of its own hash, so that two long names never meet.
  endpoint_name = length(var.name) <= 63 ? var.name : "${substr(var.name, 0, 54)}-${substr(sha256(var.name), 0, 8)}"
  # The ARN holds the name in lower case. Built here so that policies are known at plan time.
  endpoint_arn = var.create ? "arn:${local.partition}:sagemaker:${local.region}:${local.account_id}:endpoint/${lower(local.endpoint_name)}" : null

  variants = var.create ? var.variants : {}

  # Families with an accelerator that the Hugging Face GPU image drives.
  gpu_variants = toset([for key, variant in local.variants : key if can(regex("^ml\\.(g|p)[0-9]", variant.instance_type))])

  dlc_tags = {
    for key, variant in local.variants : key => join("-", [
      var.huggingface.pytorch_version,
      "transformers${var.huggingface.transformers_version}",
      contains(local.gpu_variants, key) ? "gpu" : "cpu",
      contains(local.gpu_variants, key) ? "${var.huggingface.python_version}-${var.huggingface.cuda_version}" : var.huggingface.python_version,
      var.huggingface.os_version,
    ]) if variant.image_uri == null && var.image_uri == null
  }

  image_uris = {
    for key, variant in local.variants : key =>
    variant.image_uri != null ? variant.image_uri :
    var.image_uri != null ? var.image_uri :
    data.aws_sagemaker_prebuilt_ecr_image.this[key].registry_path
  }

  # Whatever forces a new SageMaker model. The model's name carries the hash of all of it: a change makes a new name,
  # so the new model can be created before the old one goes, and no two of them collide.
  model_inputs = {
    for key, variant in local.variants : key => {
      cache             = var.model_cache_enabled
      environment       = merge(var.environment, variant.environment)
      image             = local.image_uris[key]
      model_data_url    = local.model_prefix_uri
      network_isolation = var.network_isolation
      role              = local.role_identity
    }
  }
  model_names = {
    for key, inputs in local.model_inputs : key =>
    "${substr("${local.endpoint_name}-${key}", 0, 52)}-${substr(sha256(jsonencode([local.endpoint_name, key, inputs])), 0, 10)}"
  }

  config_inputs = {
    name     = local.endpoint_name
    variants = { for key, variant in local.variants : key => merge(variant, { model = local.model_names[key] }) }
    kms_key  = var.volume_kms_key_arn
  }
  config_name = "${substr(local.endpoint_name, 0, 52)}-${substr(sha256(jsonencode(local.config_inputs)), 0, 10)}"
}

resource "aws_sagemaker_model" "this" {
  for_each = local.variants

  name                     = local.model_names[each.key]
  execution_role_arn       = local.role_arn
  enable_network_isolation = var.network_isolation

  primary_container {
    image          = local.image_uris[each.key]
    mode           = "MultiModel"
    model_data_url = local.model_prefix_uri
    environment    = local.model_inputs[each.key].environment

    multi_model_config {
      model_cache_setting = var.model_cache_enabled ? "Enabled" : "Disabled"
    }
  }

  tags = var.tags

  # SageMaker checks the role's rights and the prefix when the model is created.
  depends_on = [
    aws_iam_role_policy.this,
    aws_s3_bucket_policy.this,
    aws_s3_object.prefix,
  ]

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_sagemaker_endpoint_configuration" "this" {
  count = var.create ? 1 : 0

  name        = local.config_name
  kms_key_arn = var.volume_kms_key_arn

  dynamic "production_variants" {
    for_each = local.variants
    iterator = variant

    content {
      variant_name           = variant.key
      model_name             = aws_sagemaker_model.this[variant.key].name
      instance_type          = variant.value.instance_type
      initial_instance_count = variant.value.instance_count
      initial_variant_weight = variant.value.weight
    }
  }

  tags = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

# Its name is fixed, so never create_before_destroy here: a new configuration goes through as an update in place.
resource "aws_sagemaker_endpoint" "this" {
  count = var.create ? 1 : 0

  name                 = local.endpoint_name
  endpoint_config_name = aws_sagemaker_endpoint_configuration.this[0].name

  tags = var.tags
}

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
  for_each = local.huggingface_tags

  repository_name = "huggingface-pytorch-inference"
  image_tag       = each.value
  # The data source's own default knows only amazonaws.com.
  dns_suffix = local.dns_suffix
}

locals {
  # With create = false nothing is looked up, and names and ARNs built of these go nowhere.
  account_id = var.create ? data.aws_caller_identity.current[0].account_id : "000000000000"
  partition  = var.create ? data.aws_partition.current[0].partition : "aws"
  dns_suffix = var.create ? data.aws_partition.current[0].dns_suffix : "amazonaws.com"
  # `id` reads the same in provider 5 and 6; `name` is deprecated in 6, and `region` is not there in 5.
  region = var.create ? data.aws_region.current[0].id : "none"

  # Names of endpoints, models and configurations hold 63 characters. A longer name keeps its beginning and gets a hash
  # of the whole, so that two long names that begin alike do not meet.
  endpoint_name = length(var.name) <= 63 ? var.name : "${substr(var.name, 0, 54)}-${substr(sha256(var.name), 0, 8)}"
  # Built here, and not read from the endpoint, so that policies are known at plan time. AWS writes it in lower case.
  endpoint_arn = "arn:${local.partition}:sagemaker:${local.region}:${local.account_id}:endpoint/${lower(local.endpoint_name)}"

  variants = var.create ? var.variants : {}

  gpu_variants = toset([
    for key, variant in local.variants : key if can(regex("^ml\\.(g|p)[0-9]", variant.instance_type))
  ])
  huggingface_tags = {
    for key, variant in local.variants : key => join("-", concat(
      [var.huggingface.pytorch_version, "transformers${var.huggingface.transformers_version}"],
      contains(local.gpu_variants, key)
      ? ["gpu", var.huggingface.python_version, var.huggingface.cuda_version]
      : ["cpu", var.huggingface.python_version],
      [var.huggingface.os_version],
    )) if variant.image_uri == null && var.image_uri == null
  }
  image_uris = {
    for key, variant in local.variants : key => (
      contains(keys(local.huggingface_tags), key)
      ? data.aws_sagemaker_prebuilt_ecr_image.this[key].registry_path
      : coalesce(variant.image_uri, var.image_uri)
    )
  }

  # Everything about a model that cannot be changed once it is there. Its name carries the hash of all of it: a change
  # makes a new name, so the new model is created before the old one goes, and no two of them collide. That also
  # replaces the model when the VPC changes, which provider 5 would plan as an update that AWS has no call for.
  model_inputs = {
    for key, variant in local.variants : key => {
      endpoint          = local.endpoint_name
      variant           = key
      revision          = var.revision
      image_uri         = local.image_uris[key]
      environment       = merge(var.environment, variant.environment)
      model_data_url    = local.model_prefix_uri
      cache             = var.model_cache_enabled
      network_isolation = var.network_isolation
      vpc = var.vpc == null ? null : {
        subnet_ids         = sort(distinct(var.vpc.subnet_ids))
        security_group_ids = sort(distinct(var.vpc.security_group_ids))
      }
      role = local.role_identity
    }
  }
  model_names = {
    for key, inputs in local.model_inputs : key =>
    "${substr("${local.endpoint_name}-${key}", 0, 52)}-${substr(sha256(jsonencode(inputs)), 0, 10)}"
  }

  # The same for the endpoint configuration.
  configuration_inputs = {
    endpoint           = local.endpoint_name
    revision           = var.revision
    volume_kms_key_arn = var.volume_kms_key_arn
    data_capture       = var.data_capture == null ? null : merge(var.data_capture, { destination_uri = local.capture_uri })
    # autoscaling is no part of it, nor are an image and environment that the model's name stands for
    variants = {
      for key, variant in local.variants : key => merge(variant, {
        model       = local.model_names[key]
        autoscaling = null
        image_uri   = null
        environment = null
      })
    }
  }
  configuration_name = "${substr(local.endpoint_name, 0, 52)}-${substr(sha256(jsonencode(local.configuration_inputs)), 0, 10)}"

  rollback_alarm_names = setunion(
    [for key, alarm in local.alarms : aws_cloudwatch_metric_alarm.this[key].alarm_name if contains(var.deployment.rollback_on, alarm.kind)],
    var.deployment.rollback_alarm_names,
  )
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

  dynamic "vpc_config" {
    for_each = var.vpc[*]

    content {
      subnets            = vpc_config.value.subnet_ids
      security_group_ids = vpc_config.value.security_group_ids
    }
  }

  tags = var.tags

  # SageMaker checks the role's rights and looks for the prefix when a model is created.
  depends_on = [
    aws_iam_role_policy.this,
    aws_iam_role_policy_attachment.this,
    aws_s3_bucket_policy.this,
    aws_s3_object.prefix,
  ]

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_sagemaker_endpoint_configuration" "this" {
  count = var.create ? 1 : 0

  name        = local.configuration_name
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
      volume_size_in_gb      = variant.value.volume_size_gb
      enable_ssm_access      = variant.value.enable_ssm_access
      inference_ami_version  = variant.value.inference_ami_version

      model_data_download_timeout_in_seconds            = variant.value.download_timeout_seconds
      container_startup_health_check_timeout_in_seconds = variant.value.startup_timeout_seconds

      dynamic "routing_config" {
        for_each = variant.value.routing_strategy[*]

        content {
          routing_strategy = routing_config.value
        }
      }
    }
  }

  dynamic "data_capture_config" {
    for_each = var.data_capture[*]
    iterator = capture

    content {
      enable_capture              = true
      initial_sampling_percentage = capture.value.sampling_percentage
      destination_s3_uri          = local.capture_uri
      kms_key_id                  = capture.value.kms_key_arn

      dynamic "capture_options" {
        for_each = capture.value.modes

        content {
          capture_mode = capture_options.value
        }
      }

      dynamic "capture_content_type_header" {
        for_each = length(capture.value.json_content_types) > 0 ? [1] : []

        content {
          json_content_types = capture.value.json_content_types
        }
      }
    }
  }

  tags = var.tags

  lifecycle {
    create_before_destroy = true
  }
}

# The name is fixed, so never create_before_destroy here: a new configuration goes through as an update in place.
resource "aws_sagemaker_endpoint" "this" {
  count = var.create ? 1 : 0

  name                 = local.endpoint_name
  endpoint_config_name = aws_sagemaker_endpoint_configuration.this[0].name

  deployment_config {
    dynamic "blue_green_update_policy" {
      for_each = var.deployment.strategy != "ROLLING" ? [1] : []

      content {
        termination_wait_in_seconds          = var.deployment.termination_wait_seconds
        maximum_execution_timeout_in_seconds = var.deployment.timeout_seconds

        traffic_routing_configuration {
          type                     = var.deployment.strategy
          wait_interval_in_seconds = var.deployment.wait_seconds

          dynamic "canary_size" {
            for_each = var.deployment.strategy == "CANARY" ? [var.deployment.step] : []

            content {
              type  = canary_size.value.type
              value = canary_size.value.value
            }
          }

          dynamic "linear_step_size" {
            for_each = var.deployment.strategy == "LINEAR" ? [var.deployment.step] : []

            content {
              type  = linear_step_size.value.type
              value = linear_step_size.value.value
            }
          }
        }
      }
    }

    dynamic "rolling_update_policy" {
      for_each = var.deployment.strategy == "ROLLING" ? [1] : []

      content {
        wait_interval_in_seconds             = var.deployment.wait_seconds
        maximum_execution_timeout_in_seconds = var.deployment.timeout_seconds

        maximum_batch_size {
          type  = var.deployment.step.type
          value = var.deployment.step.value
        }

        dynamic "rollback_maximum_batch_size" {
          for_each = var.deployment.rollback_step[*]

          content {
            type  = rollback_maximum_batch_size.value.type
            value = rollback_maximum_batch_size.value.value
          }
        }
      }
    }

    # Added later, this block would replace the endpoint. So it is there from creation.
    dynamic "auto_rollback_configuration" {
      for_each = length(var.deployment.rollback_on) + length(var.deployment.rollback_alarm_names) > 0 ? [1] : []

      content {
        dynamic "alarms" {
          for_each = local.rollback_alarm_names

          content {
            alarm_name = alarms.value
          }
        }
      }
    }
  }

  tags = var.tags

  # Otherwise the first container could create the group before Terraform does.
  depends_on = [aws_cloudwatch_log_group.this]

  lifecycle {
    # AWS rolls a bad update back, and the provider takes the endpoint, in service again, for updated. Failing here keeps
    # Terraform from deleting the configuration and the model that the endpoint went back to.
    postcondition {
      condition     = self.endpoint_config_name == aws_sagemaker_endpoint_configuration.this[0].name
      error_message = "The endpoint ${self.name} does not run the new configuration ${aws_sagemaker_endpoint_configuration.this[0].name}: it is back on ${self.endpoint_config_name}, since an alarm or a failed start rolled the update back. Callers are served by the old configuration. See why with `aws sagemaker describe-endpoint --endpoint-name ${self.name}`, the alarms and the log group. Then correct the cause and apply again; or, to stay with the old settings, restore them here together with a new `revision`."
    }
  }
}

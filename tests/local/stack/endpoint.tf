resource "aws_sagemaker_model" "this" {
  name                     = "${var.name}-${substr(sha256(jsonencode([local.image, var.environment])), 0, 8)}"
  execution_role_arn       = aws_iam_role.this.arn
  enable_network_isolation = true

  primary_container {
    image          = local.image
    mode           = "MultiModel"
    model_data_url = "s3://${aws_s3_bucket.this.bucket}/models/"
    environment    = var.environment
    multi_model_config {
      model_cache_setting = "Enabled"
    }
  }

  vpc_config {
    subnets            = aws_subnet.this[*].id
    security_group_ids = [aws_security_group.this.id]
  }

  depends_on = [aws_iam_role_policy.this]
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_sagemaker_endpoint_configuration" "this" {
  name_prefix = "${var.name}-"
  kms_key_arn = aws_kms_key.this.arn

  dynamic "production_variants" {
    for_each = var.variants
    content {
      variant_name                                      = production_variants.key
      model_name                                        = aws_sagemaker_model.this.name
      instance_type                                     = var.instance_type
      initial_instance_count                            = var.instance_count
      initial_variant_weight                            = production_variants.value
      volume_size_in_gb                                 = 30
      container_startup_health_check_timeout_in_seconds = 300
      model_data_download_timeout_in_seconds            = 600
      routing_config {
        routing_strategy = "LEAST_OUTSTANDING_REQUESTS"
      }
    }
  }

  dynamic "shadow_production_variants" {
    for_each = length(var.variants) == 1 ? [1] : []
    content {
      variant_name           = "shadow"
      model_name             = aws_sagemaker_model.this.name
      instance_type          = var.instance_type
      initial_instance_count = 1
      initial_variant_weight = 0.5
    }
  }

  data_capture_config {
    enable_capture              = true
    initial_sampling_percentage = 10
    destination_s3_uri          = "s3://${aws_s3_bucket.this.bucket}/captured/"
    capture_options {
      capture_mode = "Input"
    }
    capture_content_type_header {
      json_content_types = ["application/json"]
    }
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_sagemaker_endpoint" "this" {
  name                 = var.name
  endpoint_config_name = aws_sagemaker_endpoint_configuration.this.name

  deployment_config {
    blue_green_update_policy {
      traffic_routing_configuration {
        type                     = "CANARY"
        wait_interval_in_seconds = 60
        canary_size {
          type  = "CAPACITY_PERCENT"
          value = 50
        }
      }
      termination_wait_in_seconds          = 0
      maximum_execution_timeout_in_seconds = 1800
    }
    auto_rollback_configuration {
      alarms {
        alarm_name = aws_cloudwatch_metric_alarm.errors.alarm_name
      }
    }
  }

  depends_on = [aws_cloudwatch_log_group.this]
}

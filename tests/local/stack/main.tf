# A wide stack: one of nearly everything that a module around multi-model endpoints uses. It is here to find out what
# the local AWS answers wrongly, so it is broader than any real module. Lifecycle rules alone are left out: the provider
# waits a minute for them to settle, and tests/local/test_corrections.py has them.

terraform {
  required_version = ">= 1.9"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100"
    }
  }
}

variable "name" {
  type = string
}

variable "image_tag" {
  type    = string
  default = "1"
}

variable "instance_type" {
  type    = string
  default = "ml.m6i.large"
}

variable "instance_count" {
  type    = number
  default = 2
}

variable "environment" {
  type    = map(string)
  default = { TEST_GREETING = "hello" }
}

variable "variants" {
  type    = map(number)
  default = { blue = 1, green = 0.5 }
}

provider "aws" {
  default_tags {
    tags = { Stack = var.name }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

data "aws_availability_zones" "these" {
  state = "available"
}

locals {
  image = "${data.aws_caller_identity.current.account_id}.dkr.ecr.us-east-1.amazonaws.com/${var.name}:${var.image_tag}"
}

# -- bucket

resource "aws_s3_bucket" "this" {
  bucket        = "${var.name}-models"
  force_destroy = true
}

resource "aws_s3_bucket" "logs" {
  bucket        = "${var.name}-logs"
  force_destroy = true
}

resource "aws_s3_bucket_versioning" "this" {
  bucket = aws_s3_bucket.this.id
  versioning_configuration {
    status = "Enabled"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  bucket = aws_s3_bucket.this.id
  rule {
    bucket_key_enabled = true
    apply_server_side_encryption_by_default {
      sse_algorithm     = "aws:kms"
      kms_master_key_id = aws_kms_key.this.arn
    }
  }
}

resource "aws_s3_bucket_public_access_block" "this" {
  bucket                  = aws_s3_bucket.this.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  bucket = aws_s3_bucket.this.id
  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_logging" "this" {
  bucket        = aws_s3_bucket.this.id
  target_bucket = aws_s3_bucket.logs.id
  target_prefix = "access/"
  depends_on    = [aws_s3_bucket_policy.logs]
}

data "aws_iam_policy_document" "logs" {
  statement {
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.logs.arn}/access/*"]
    principals {
      type        = "Service"
      identifiers = ["logging.s3.amazonaws.com"]
    }
  }
}

resource "aws_s3_bucket_policy" "logs" {
  bucket = aws_s3_bucket.logs.id
  policy = data.aws_iam_policy_document.logs.json
}

data "aws_iam_policy_document" "bucket" {
  statement {
    sid       = "TlsOnly"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [aws_s3_bucket.this.arn, "${aws_s3_bucket.this.arn}/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
  statement {
    sid       = "NeverOverwrite"
    effect    = "Deny"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.this.arn}/models/*"]
    principals {
      type        = "*"
      identifiers = ["*"]
    }
    condition {
      test     = "Null"
      variable = "s3:if-none-match"
      values   = ["true"]
    }
    condition {
      test     = "Bool"
      variable = "s3:ObjectCreationOperation"
      values   = ["true"]
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  bucket     = aws_s3_bucket.this.id
  policy     = data.aws_iam_policy_document.bucket.json
  depends_on = [aws_s3_bucket_public_access_block.this]
}

resource "aws_s3_object" "note" {
  bucket  = aws_s3_bucket.this.id
  key     = "README.txt"
  content = "models are below models/"
}

# -- key, network, image, topic, logs

resource "aws_kms_key" "this" {
  description             = "models of ${var.name}"
  deletion_window_in_days = 7
  enable_key_rotation     = true
}

resource "aws_kms_alias" "this" {
  name          = "alias/${var.name}"
  target_key_id = aws_kms_key.this.key_id
}

resource "aws_vpc" "this" {
  cidr_block           = "10.20.0.0/16"
  enable_dns_hostnames = true
}

resource "aws_subnet" "this" {
  count             = 2
  vpc_id            = aws_vpc.this.id
  cidr_block        = cidrsubnet(aws_vpc.this.cidr_block, 8, count.index)
  availability_zone = data.aws_availability_zones.these.names[count.index]
}

resource "aws_route_table" "this" {
  vpc_id = aws_vpc.this.id
}

resource "aws_route_table_association" "this" {
  count          = 2
  subnet_id      = aws_subnet.this[count.index].id
  route_table_id = aws_route_table.this.id
}

resource "aws_vpc_endpoint" "s3" {
  vpc_id          = aws_vpc.this.id
  service_name    = "com.amazonaws.${data.aws_region.current.id}.s3"
  route_table_ids = [aws_route_table.this.id]
}

resource "aws_security_group" "this" {
  name        = var.name
  description = "containers"
  vpc_id      = aws_vpc.this.id
}

resource "aws_vpc_security_group_egress_rule" "this" {
  security_group_id = aws_security_group.this.id
  cidr_ipv4         = "10.20.0.0/16"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
}

resource "aws_ecr_repository" "this" {
  name                 = var.name
  image_tag_mutability = "IMMUTABLE"
  force_delete         = true
}

resource "aws_sns_topic" "this" {
  name = var.name
}

resource "aws_sns_topic_subscription" "this" {
  topic_arn = aws_sns_topic.this.arn
  protocol  = "email"
  endpoint  = "nobody@example.com"
}

resource "aws_cloudwatch_log_group" "this" {
  name              = "/aws/sagemaker/Endpoints/${var.name}"
  retention_in_days = 30
}

# -- role

data "aws_iam_policy_document" "trust" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }
  }
}

data "aws_iam_policy_document" "role" {
  statement {
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.this.arn}/models/*"]
  }
  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.this.arn]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["models/*"]
    }
  }
  statement {
    actions   = ["kms:Decrypt"]
    resources = [aws_kms_key.this.arn]
  }
}

resource "aws_iam_policy" "boundary" {
  name   = "${var.name}-boundary"
  policy = jsonencode({ Version = "2012-10-17", Statement = [{ Effect = "Allow", Action = "*", Resource = "*" }] })
}

resource "aws_iam_role" "this" {
  name                 = "${var.name}-execution"
  path                 = "/ml/"
  assume_role_policy   = data.aws_iam_policy_document.trust.json
  permissions_boundary = aws_iam_policy.boundary.arn
}

resource "aws_iam_role_policy" "this" {
  name   = "models"
  role   = aws_iam_role.this.id
  policy = data.aws_iam_policy_document.role.json
}

resource "aws_iam_policy" "invoke" {
  name = "${var.name}-invoke"
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = [{
      Effect    = "Allow"
      Action    = "sagemaker:InvokeEndpoint"
      Resource  = aws_sagemaker_endpoint.this.arn
      Condition = { StringLike = { "sagemaker:TargetModel" = ["team-a/*"] } }
    }]
  })
}

# -- endpoint

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

# -- autoscaling

resource "aws_appautoscaling_target" "this" {
  for_each           = var.variants
  service_namespace  = "sagemaker"
  resource_id        = "endpoint/${aws_sagemaker_endpoint.this.name}/variant/${each.key}"
  scalable_dimension = "sagemaker:variant:DesiredInstanceCount"
  min_capacity       = 1
  max_capacity       = 4

  lifecycle {
    replace_triggered_by = [aws_sagemaker_endpoint_configuration.this.id]
  }
}

resource "aws_appautoscaling_policy" "invocations" {
  for_each           = aws_appautoscaling_target.this
  name               = "invocations"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value       = 70
    scale_in_cooldown  = 600
    scale_out_cooldown = 300
    predefined_metric_specification {
      predefined_metric_type = "SageMakerVariantInvocationsPerInstance"
    }
  }
}

resource "aws_appautoscaling_policy" "memory" {
  for_each           = aws_appautoscaling_target.this
  name               = "memory"
  policy_type        = "TargetTrackingScaling"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension

  target_tracking_scaling_policy_configuration {
    target_value = 80
    customized_metric_specification {
      metric_name = "MemoryUtilization"
      namespace   = "/aws/sagemaker/Endpoints"
      statistic   = "Average"
      dimensions {
        name  = "EndpointName"
        value = aws_sagemaker_endpoint.this.name
      }
      dimensions {
        name  = "VariantName"
        value = each.key
      }
    }
  }
}

resource "aws_appautoscaling_scheduled_action" "this" {
  for_each           = aws_appautoscaling_target.this
  name               = "${var.name}-${each.key}-morning"
  service_namespace  = each.value.service_namespace
  resource_id        = each.value.resource_id
  scalable_dimension = each.value.scalable_dimension
  schedule           = "cron(0 7 * * ? *)"
  timezone           = "Europe/Vienna"

  scalable_target_action {
    min_capacity = 2
    max_capacity = 4
  }
}

# -- monitoring

resource "aws_cloudwatch_metric_alarm" "errors" {
  alarm_name          = "${var.name}-5xx"
  comparison_operator = "GreaterThanThreshold"
  evaluation_periods  = 3
  datapoints_to_alarm = 2
  threshold           = 0
  namespace           = "AWS/SageMaker"
  metric_name         = "Invocation5XXErrors"
  statistic           = "Sum"
  period              = 60
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.this.arn]
  dimensions          = { EndpointName = var.name }
}

resource "aws_cloudwatch_metric_alarm" "latency" {
  alarm_name          = "${var.name}-latency"
  comparison_operator = "GreaterThanThreshold"
  evaluation_periods  = 3
  threshold           = 1000000
  namespace           = "AWS/SageMaker"
  metric_name         = "ModelLatency"
  extended_statistic  = "p99"
  period              = 60
  dimensions          = { EndpointName = var.name }
}

resource "aws_cloudwatch_metric_alarm" "cache" {
  alarm_name          = "${var.name}-cache"
  comparison_operator = "LessThanThreshold"
  evaluation_periods  = 1
  threshold           = 0.5
  alarm_description   = "share of requests that find their model loaded"

  metric_query {
    id          = "ratio"
    expression  = "FILL(hits, 1)"
    label       = "hit ratio"
    return_data = true
  }
  metric_query {
    id = "hits"
    metric {
      namespace   = "AWS/SageMaker"
      metric_name = "ModelCacheHit"
      stat        = "Average"
      period      = 300
      dimensions  = { EndpointName = var.name, VariantName = "blue" }
    }
  }
}

resource "aws_cloudwatch_composite_alarm" "this" {
  alarm_name = "${var.name}-any"
  alarm_rule = "ALARM(${aws_cloudwatch_metric_alarm.errors.alarm_name}) OR ALARM(${aws_cloudwatch_metric_alarm.latency.alarm_name})"
}

resource "aws_cloudwatch_dashboard" "this" {
  dashboard_name = var.name
  dashboard_body = jsonencode({
    widgets = [{
      type   = "metric"
      x      = 0
      y      = 0
      width  = 12
      height = 6
      properties = {
        region  = data.aws_region.current.id
        metrics = [["AWS/SageMaker", "Invocations", "EndpointName", var.name]]
      }
    }]
  })
}

output "endpoint_name" {
  value = aws_sagemaker_endpoint.this.name
}

output "bucket" {
  value = aws_s3_bucket.this.bucket
}

output "role_arn" {
  value = aws_iam_role.this.arn
}

output "invoke_policy_arn" {
  value = aws_iam_policy.invoke.arn
}

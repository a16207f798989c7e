# Region and credentials come from the environment.
provider "aws" {
  default_tags {
    tags = {
      project = "mme"
      example = "complete"
    }
  }
}

data "aws_caller_identity" "current" {}

# Where S3 writes its access logs. A platform usually has such a bucket already.
resource "aws_s3_bucket" "logs" {
  # checkov:skip=CKV_AWS_18:the log bucket does not log itself
  # checkov:skip=CKV_AWS_21:logs are written once
  # checkov:skip=CKV_AWS_144:an example's logs need no copy in another region
  # checkov:skip=CKV_AWS_145:S3 writes access logs only to buckets with its own encryption
  # checkov:skip=CKV2_AWS_61:an example's logs go with the example
  # checkov:skip=CKV2_AWS_62:nothing waits for new logs
  bucket        = "${var.name}-logs-${data.aws_caller_identity.current.account_id}"
  force_destroy = true # an example is there to be taken down again
}

resource "aws_s3_bucket_public_access_block" "logs" {
  bucket                  = aws_s3_bucket.logs.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

data "aws_iam_policy_document" "logs" {
  statement {
    sid       = "WriteAccessLogs"
    actions   = ["s3:PutObject"]
    resources = ["${aws_s3_bucket.logs.arn}/*"]

    principals {
      type        = "Service"
      identifiers = ["logging.s3.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

resource "aws_s3_bucket_policy" "logs" {
  bucket = aws_s3_bucket.logs.id
  policy = data.aws_iam_policy_document.logs.json

  depends_on = [aws_s3_bucket_public_access_block.logs]
}

module "endpoint" {
  source = "../.."

  name = var.name
  tags = { team = "search" }

  huggingface = {
    pytorch_version      = "2.6.0"
    transformers_version = "5.5.3"
  }

  environment = {
    SAGEMAKER_MODEL_SERVER_WORKERS = "2"
  }

  variants = {
    primary = {
      instance_type            = var.instance_type
      instance_count           = 2
      volume_size_gb           = 64
      download_timeout_seconds = 600
      startup_timeout_seconds  = 300
      routing_strategy         = "LEAST_OUTSTANDING_REQUESTS"

      autoscaling = {
        min_capacity             = 2
        max_capacity             = 6
        invocations_per_instance = 70
        memory_utilization       = 80

        schedules = {
          evening = {
            schedule     = "cron(0 20 * * ? *)"
            timezone     = "Europe/Berlin"
            min_capacity = 2
            max_capacity = 3
          }
          morning = {
            schedule     = "cron(0 7 * * ? *)"
            timezone     = "Europe/Berlin"
            min_capacity = 2
            max_capacity = 6
          }
        }
      }
    }
  }

  deployment = {
    strategy                 = "CANARY"
    step                     = { type = "INSTANCE_COUNT", value = 1 }
    wait_seconds             = 600
    termination_wait_seconds = 120
    rollback_on              = ["errors_5xx", "latency"]
  }

  bucket = {
    deny_overwrite = true
    access_log     = { bucket = aws_s3_bucket.logs.bucket, prefix = "s3/" }
    force_destroy  = true # an example is there to be taken down again
  }

  role = {
    path                     = "/ml/"
    permissions_boundary_arn = aws_iam_policy.boundary.arn
  }

  create_publisher_policy = true
  invoke_policies         = { search = ["search/*", "shared/*"] }

  alarms = {
    enabled = true
    settings = {
      latency   = { threshold = 2 }
      cache_hit = { threshold = 0.9 }
      overhead  = { enabled = false }
    }
  }

  dashboard     = true
  notifications = { create_topic = true, emails = var.emails }
  logs          = { retention_days = 90 }

  data_capture = { sampling_percentage = 5 }
}

# The most that any role under /ml/ may do, whatever its own policies say.
data "aws_iam_policy_document" "boundary" {
  # checkov:skip=CKV_AWS_108:a boundary grants nothing; the role's own policy names the resources
  # checkov:skip=CKV_AWS_111:a boundary grants nothing; the role's own policy names the resources
  # checkov:skip=CKV_AWS_356:a boundary grants nothing; the role's own policy names the resources
  statement {
    sid = "Inference"
    actions = [
      "cloudwatch:PutMetricData",
      "ecr:BatchCheckLayerAvailability",
      "ecr:BatchGetImage",
      "ecr:GetAuthorizationToken",
      "ecr:GetDownloadUrlForLayer",
      "logs:CreateLogGroup",
      "logs:CreateLogStream",
      "logs:DescribeLogStreams",
      "logs:PutLogEvents",
      "s3:GetObject",
      "s3:ListBucket",
      "s3:PutObject",
    ]
    resources = ["*"]
  }
}

resource "aws_iam_policy" "boundary" {
  name   = "${var.name}-boundary"
  path   = "/ml/"
  policy = data.aws_iam_policy_document.boundary.json
}

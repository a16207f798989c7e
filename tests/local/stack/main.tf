# A wide stack: one of nearly everything that a module around multi-model endpoints uses. It is here to find out what
# the local AWS answers wrongly, so it is broader than any real module. Lifecycle rules alone are left out: the provider
# waits a minute for them to settle, and tests/local/test_corrections_monitoring.py has them.

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

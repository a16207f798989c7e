# Region and credentials come from the environment.
provider "aws" {}

data "aws_caller_identity" "current" {}

# Stand-ins for what a platform team already has. In your own root these two are `data` sources, or plain names.
resource "aws_s3_bucket" "artifacts" {
  # checkov:skip=CKV_AWS_18:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_21:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_144:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV_AWS_145:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV2_AWS_61:stands for a bucket whose settings are its owner's
  # checkov:skip=CKV2_AWS_62:stands for a bucket whose settings are its owner's
  bucket        = "${var.name}-artifacts-${data.aws_caller_identity.current.account_id}"
  force_destroy = true # an example is there to be taken down again
}

resource "aws_s3_bucket_public_access_block" "artifacts" {
  bucket                  = aws_s3_bucket.artifacts.id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_iam_role" "inference" {
  name               = "${var.name}-inference"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = ["sagemaker.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = [data.aws_caller_identity.current.account_id]
    }
  }
}

# What an execution role needs at the least, beside logs, metrics and the image: the archives under the prefix.
data "aws_iam_policy_document" "read" {
  statement {
    actions   = ["s3:GetObject"]
    resources = ["${aws_s3_bucket.artifacts.arn}/inference/models/*"]
  }

  statement {
    actions   = ["s3:ListBucket"]
    resources = [aws_s3_bucket.artifacts.arn]

    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["inference/models/*"]
    }
  }
}

resource "aws_iam_role_policy" "read" {
  name   = "read-models"
  role   = aws_iam_role.inference.name
  policy = data.aws_iam_policy_document.read.json
}

module "endpoint" {
  source = "../.."

  name         = var.name
  environment  = var.environment
  model_prefix = "inference/models/"

  bucket = {
    create = false
    name   = aws_s3_bucket.artifacts.bucket
    # The bucket is new here and holds nothing yet, which SageMaker would refuse. One with archives needs no marker.
    prefix_marker = true
  }

  role = {
    create = false
    arn    = aws_iam_role.inference.arn
  }
}

locals {
  create_bucket = var.create && var.bucket.create

  # Known at plan time and unique without a random suffix: bucket names are shared by every AWS account.
  bucket_stem = lower(replace(var.name, "_", "-"))
  bucket_name = var.bucket.name != null ? var.bucket.name : (
    var.create ? "${length(local.bucket_stem) <= 35 ? local.bucket_stem : "${substr(local.bucket_stem, 0, 26)}-${substr(sha256(var.name), 0, 8)}"}-${local.account_id}-${local.region}" : null
  )
  bucket           = local.create_bucket ? aws_s3_bucket.this[0].bucket : local.bucket_name
  bucket_arn       = "arn:${coalesce(local.partition, "aws")}:s3:::${coalesce(local.bucket_name, "none")}"
  model_prefix_uri = var.create ? "s3://${local.bucket}/${var.model_prefix}" : null
}

resource "aws_s3_bucket" "this" {
  count = local.create_bucket ? 1 : 0

  bucket        = local.bucket_name
  force_destroy = var.bucket.force_destroy

  tags = var.tags
}

resource "aws_s3_bucket_public_access_block" "this" {
  count = local.create_bucket ? 1 : 0

  bucket                  = aws_s3_bucket.this[0].id
  block_public_acls       = true
  block_public_policy     = true
  ignore_public_acls      = true
  restrict_public_buckets = true
}

resource "aws_s3_bucket_ownership_controls" "this" {
  count = local.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    object_ownership = "BucketOwnerEnforced"
  }
}

resource "aws_s3_bucket_server_side_encryption_configuration" "this" {
  count = local.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  rule {
    bucket_key_enabled = var.bucket.kms_key_arn != null

    apply_server_side_encryption_by_default {
      sse_algorithm     = var.bucket.kms_key_arn != null ? "aws:kms" : "AES256"
      kms_master_key_id = var.bucket.kms_key_arn
    }
  }
}

resource "aws_s3_bucket_versioning" "this" {
  count = local.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  versioning_configuration {
    status = "Enabled"
  }
}

data "aws_iam_policy_document" "bucket" {
  count = local.create_bucket ? 1 : 0

  statement {
    sid       = "DenyPlainHttp"
    effect    = "Deny"
    actions   = ["s3:*"]
    resources = [local.bucket_arn, "${local.bucket_arn}/*"]

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
}

resource "aws_s3_bucket_policy" "this" {
  count = local.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id
  policy = data.aws_iam_policy_document.bucket[0].json

  # A policy put while public access is being blocked is refused with a conflict.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

# SageMaker refuses a model whose prefix holds nothing. The empty object stands for the prefix until the first
# archive is published.
resource "aws_s3_object" "prefix" {
  count = local.create_bucket ? 1 : 0

  bucket  = aws_s3_bucket.this[0].id
  key     = var.model_prefix
  content = ""

  # An object holds ten tags at most, fewer than the provider's default_tags may bring.
  override_provider {
    default_tags {
      tags = {}
    }
  }

  depends_on = [
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_s3_bucket_versioning.this,
  ]
}

locals {
  create_bucket = var.create && var.bucket.create
  create_marker = var.create && coalesce(var.bucket.prefix_marker, var.bucket.create)

  # Bucket names are shared by all accounts. Account and region make this one unique without a random suffix, so it is
  # known at plan time. 63 characters less the account, the longest region's name and two hyphens leave 35.
  bucket_stem = lower(length(var.name) <= 35 ? var.name : "${substr(var.name, 0, 26)}-${substr(sha256(var.name), 0, 8)}")
  bucket_name = coalesce(var.bucket.name, "${local.bucket_stem}-${local.account_id}-${local.region}")
  # `bucket` is known at plan time, `id` is not; both make whatever uses it wait for the bucket.
  bucket     = local.create_bucket ? aws_s3_bucket.this[0].bucket : local.bucket_name
  bucket_arn = "arn:${local.partition}:s3:::${local.bucket_name}"

  # The folder that the model prefix lies in: "" or "production/". Channels and captured data lie in it as well.
  root_prefix      = replace(var.model_prefix, "/[^/]+/$/", "")
  channel_prefix   = "${local.root_prefix}channels/"
  archive_arns     = "${local.bucket_arn}/${var.model_prefix}*.tar.gz"
  model_prefix_uri = "s3://${local.bucket}/${var.model_prefix}"
  capture_uri      = coalesce(try(var.data_capture.destination_uri, null), "s3://${local.bucket}/${local.root_prefix}data-capture/")
}

resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV2_AWS_62:nothing waits for new archives; they are found by name when they are called
  # checkov:skip=CKV_AWS_144:archives can be built again from their sources; a copy in another region is for the caller to want
  # checkov:skip=CKV_AWS_21:versioning is on unless the caller turns it off (bucket.versioning_enabled)
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
    status = var.bucket.versioning_enabled ? "Enabled" : "Suspended"
  }
}

resource "aws_s3_bucket_lifecycle_configuration" "this" {
  count = local.create_bucket && var.bucket.abort_incomplete_upload_days + var.bucket.noncurrent_version_expiration_days > 0 ? 1 : 0

  bucket = aws_s3_bucket.this[0].id

  dynamic "rule" {
    for_each = var.bucket.abort_incomplete_upload_days > 0 ? [var.bucket.abort_incomplete_upload_days] : []

    content {
      id     = "abort-incomplete-uploads"
      status = "Enabled"

      filter {}

      abort_incomplete_multipart_upload {
        days_after_initiation = rule.value
      }
    }
  }

  dynamic "rule" {
    for_each = var.bucket.noncurrent_version_expiration_days > 0 ? [var.bucket.noncurrent_version_expiration_days] : []

    content {
      id     = "expire-old-versions"
      status = "Enabled"

      filter {}

      noncurrent_version_expiration {
        noncurrent_days = rule.value
      }

      # What is left of a deleted object once its last version has gone.
      expiration {
        expired_object_delete_marker = true
      }
    }
  }

  depends_on = [aws_s3_bucket_versioning.this]
}

resource "aws_s3_bucket_logging" "this" {
  for_each = { for key, log in { this = var.bucket.access_log } : key => log if local.create_bucket && log != null }

  bucket        = aws_s3_bucket.this[0].id
  target_bucket = each.value.bucket
  target_prefix = each.value.prefix
}

data "aws_iam_policy_document" "bucket" {
  count = local.create_bucket ? 1 : 0

  source_policy_documents = compact([var.bucket.policy_json])

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

  dynamic "statement" {
    for_each = var.bucket.deny_overwrite ? [1] : []

    content {
      sid       = "DenyReplacingArchives"
      effect    = "Deny"
      actions   = ["s3:PutObject"]
      resources = [local.archive_arns]

      principals {
        type        = "*"
        identifiers = ["*"]
      }

      condition {
        test     = "Null"
        variable = "s3:if-none-match"
        values   = ["true"]
      }

      # Not the parts of a multipart upload, which cannot carry the header.
      condition {
        test     = "Bool"
        variable = "s3:ObjectCreationOperation"
        values   = ["true"]
      }
    }
  }
}

resource "aws_s3_bucket_policy" "this" {
  count = local.create_bucket ? 1 : 0

  bucket = aws_s3_bucket.this[0].id
  policy = data.aws_iam_policy_document.bucket[0].json

  # S3 refuses two changes at once to what is public about a bucket.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

# SageMaker refuses a model whose prefix holds nothing. This empty object stands there until the first archive does.
resource "aws_s3_object" "prefix" {
  count = local.create_marker ? 1 : 0

  bucket  = local.bucket
  key     = var.model_prefix
  content = ""

  # An object takes ten tags, fewer than the provider's default_tags may bring.
  override_provider {
    default_tags {
      tags = {}
    }
  }

  depends_on = [
    aws_s3_bucket_ownership_controls.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_s3_bucket_versioning.this,
  ]
}

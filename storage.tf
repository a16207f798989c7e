locals {
  create_bucket = var.create && var.bucket.create
  create_marker = var.create && coalesce(var.bucket.prefix_marker, var.bucket.create)

  # Bucket names are shared by all accounts. Account and region make this one unique without a random suffix, so it is
  # known at plan time. 63 characters less the account, the longest region's name and two hyphens leave 35.
  bucket_stem = lower(length(local.name) <= 35 ? local.name : "${substr(local.name, 0, 26)}-${substr(sha256(local.name), 0, 8)}")
  bucket_name = nonsensitive(coalesce(var.bucket.name, "${local.bucket_stem}-${local.account_id}-${local.region}"))
  # `bucket` is known at plan time, `id` is not; both make whatever uses it wait for the bucket.
  bucket     = try(aws_s3_bucket.this[0].bucket, local.bucket_name)
  bucket_arn = "arn:${local.partition}:s3:::${local.bucket_name}"

  # The folder that the model prefix lies in: "" or "production/". Channels, capacity plans and captured data lie in it, too.
  root_prefix      = replace(local.model_prefix, "/[^/]+/$/", "")
  channel_prefix   = "${local.root_prefix}channels/"
  plan_prefix      = "${local.root_prefix}plans/"
  archive_arns     = "${local.bucket_arn}/${local.model_prefix}*.tar.gz"
  model_prefix_uri = "s3://${local.bucket}/${local.model_prefix}"
  capture_uri      = nonsensitive(coalesce(try(var.data_capture.destination_uri, null), "s3://${local.bucket}/${local.root_prefix}data-capture/"))
}

resource "aws_s3_bucket" "this" {
  # checkov:skip=CKV2_AWS_62:nothing waits for new archives; they are found by name when they are called
  # checkov:skip=CKV_AWS_144:archives can be built again from their sources; a copy in another region is for the caller to want
  # checkov:skip=CKV_AWS_21:versioning is on unless the caller turns it off (bucket.versioning_enabled)
  count = local.create_bucket ? 1 : 0

  bucket        = local.bucket_name
  force_destroy = var.bucket.force_destroy

  tags = local.tags

  lifecycle {
    precondition {
      condition     = var.bucket.force_destroy || try(terraform_data.location[0].output.bucket, local.bucket_name) == local.bucket_name
      error_message = "The bucket's name changes to ${local.bucket_name}. That makes a new, empty bucket, and the endpoint would move to it while the archives stay behind. Make the new bucket beside the module, copy the archives, and name it with bucket = { create = false, name = … }; docs/module.md has the order of steps. If the archives may be lost, set bucket.force_destroy."
    }
  }
}

# Remembers where the archives went at first: what a changed name or prefix is compared with. A change of force_destroy
# makes it look again.
resource "terraform_data" "location" {
  count = local.create_bucket ? 1 : 0

  input            = { bucket = local.bucket_name, prefix = local.model_prefix }
  triggers_replace = var.bucket.force_destroy

  lifecycle {
    ignore_changes = [input]
  }
}

# Whether there are archives at the prefix, and where they went at first. Two objects tell: the marker, and any other.
data "aws_s3_objects" "archives" {
  for_each = { for key, prefix in { now = local.model_prefix, first = try(terraform_data.location[0].output.prefix, "") } : key => prefix if length(aws_s3_bucket.this) > 0 }

  bucket   = aws_s3_bucket.this[0].id
  prefix   = each.value
  max_keys = 2
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
  count = local.create_bucket && var.bucket.access_log != null ? 1 : 0

  bucket        = aws_s3_bucket.this[0].id
  target_bucket = var.bucket.access_log.bucket
  target_prefix = var.bucket.access_log.prefix
}

moved {
  from = aws_s3_bucket_logging.this["this"]
  to   = aws_s3_bucket_logging.this[0]
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

  lifecycle {
    precondition {
      condition     = length(jsonencode(jsondecode(data.aws_iam_policy_document.bucket[0].json))) <= 20480
      error_message = "The bucket's policy has ${length(jsonencode(jsondecode(data.aws_iam_policy_document.bucket[0].json)))} characters; S3 takes 20480. Shorten bucket.policy_json."
    }
  }

  # S3 refuses two changes at once to what is public about a bucket.
  depends_on = [aws_s3_bucket_public_access_block.this]
}

# A bucket that holds archives cannot be deleted, but Terraform would find that out last: it takes what depends on a bucket
# away first, and that is all that protects it. So this depends on all of it, goes before it, and refuses to go while
# there is anything in the bucket or nobody can tell. What it needs is in its own state; it asks with the AWS CLI or, with
# keys in the environment, with curl.
resource "terraform_data" "bucket_guard" {
  count = local.create_bucket ? 1 : 0

  input = {
    bucket = local.bucket
    region = local.region
    host   = "s3.${local.region}.${local.dns_suffix}"
    force  = var.bucket.force_destroy
  }

  provisioner "local-exec" {
    when    = destroy
    quiet   = true
    command = self.output.force ? "exit 0" : "sh -c \"$GUARD\""

    environment = {
      BUCKET = self.output.bucket
      REGION = self.output.region
      HOST   = self.output.host
      GUARD  = <<-EOT
        [ "$DELETE_BUCKET" = "$BUCKET" ] && exit 0
        if found=$(aws s3api list-object-versions --bucket "$BUCKET" --region "$REGION" --max-items 1 --output text \
            --query '[Versions, DeleteMarkers][].[Key]' 2>/dev/null); then
          case "$found" in "" | None) exit 0 ;; esac
          why="there are objects in it, such as $found"
        elif [ -n "$AWS_ACCESS_KEY_ID" ] && found=$(curl --silent --fail --max-time 30 \
            --aws-sigv4 "aws:amz:$REGION:s3" --user "$AWS_ACCESS_KEY_ID:$AWS_SECRET_ACCESS_KEY" \
            $${AWS_SESSION_TOKEN:+--header} $${AWS_SESSION_TOKEN:+"x-amz-security-token: $AWS_SESSION_TOKEN"} \
            "$${AWS_ENDPOINT_URL_S3:-$${AWS_ENDPOINT_URL:-https://$HOST}}/$BUCKET?max-keys=1&versions="); then
          case "$found" in *"<Key>"*) ;; *) exit 0 ;; esac
          why="there are objects in it"
        else
          why="whether it is empty cannot be told here, without the AWS CLI or keys in the environment"
        fi
        echo "The bucket $BUCKET stays, with all that protects it: $why." >&2
        echo "To delete it with whatever is in it, set bucket.force_destroy = true and apply that first. To delete it once" >&2
        echo "it is empty, destroy again; DELETE_BUCKET=$BUCKET in the environment skips this question." >&2
        echo "To keep it, take it out of the state: terraform state rm (docs/module.md has the addresses)." >&2
        exit 1
      EOT
    }
  }

  depends_on = [
    aws_s3_bucket_lifecycle_configuration.this,
    aws_s3_bucket_logging.this,
    aws_s3_bucket_ownership_controls.this,
    aws_s3_bucket_policy.this,
    aws_s3_bucket_public_access_block.this,
    aws_s3_bucket_server_side_encryption_configuration.this,
    aws_s3_bucket_versioning.this,
  ]
}

# SageMaker refuses a model whose prefix holds nothing. This empty object stands there until the first archive does.
resource "aws_s3_object" "prefix" {
  count = local.create_marker ? 1 : 0

  bucket  = local.bucket
  key     = local.model_prefix
  content = ""

  # An object takes ten tags, fewer than the provider's default_tags may bring.
  override_provider {
    default_tags {
      tags = {}
    }
  }

  # With its versions it is gone before the guard looks for what is left.
  depends_on = [terraform_data.bucket_guard]
}

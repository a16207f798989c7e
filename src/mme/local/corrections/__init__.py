"""Where moto is wrong for this job, put right."""

"""A container as a process, and its contract as a caller sees it. Nobody else starts or speaks to one."""

"""Operations on tensors: one file each, contract and plain torch reference. They never heard of a request."""

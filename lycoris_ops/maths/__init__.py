"""Operations on plain tensors: shapes, numbers and decompositions."""

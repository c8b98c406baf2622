-- about: weights
-- needs: layers with a BatchNorm behind them
select
    max(largest_change) filter (where metric = 'sparsity') as sparsity,
    max(largest_change) filter (where metric = 'variance_entropy') as entropy,
    max(largest_change) filter (where metric = 'orthogonality') as orthogonality,
    format(
        'largest change of a layer: sparsity {:.3f}, entropy {:.3f}, orthogonality {:.3f}',
        sparsity, entropy, orthogonality
    ) as shows,
    sparsity > orthogonality and entropy > orthogonality as holds
from answer
where folded_layers > 0

-- Layers without a value of a metric, per view: what a depth figure cannot show.
select
    dataset,
    weights,
    count(*) as layers,
    count_if(sparsity is null or not isfinite(sparsity)) as sparsity,
    count_if(variance_entropy is null or not isfinite(variance_entropy)) as variance_entropy,
    count_if(orthogonality is null or not isfinite(orthogonality)) as orthogonality
from layers
group by dataset, weights
order by dataset, weights

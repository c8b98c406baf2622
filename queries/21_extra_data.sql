-- title: Effect of extra training data
-- finding: Extra data changes sparsity in no consistent way: sparse filters x 0.48, x 0.24, but also x 35.9.
-- paper: sparsity.ipynb cell 16
-- expect: ratios on both sides of 1
-- note: A model trained on extra data and its twin without: same data set, name without `_extra`. One
--       published pair compares two architectures, so shares (`sparsity_ratio`) are given beside counts.
select
    e.dataset,
    o.network,
    e.network as extra_network,
    o.architecture,
    e.architecture as extra_architecture,
    o.n_sparse,
    e.n_sparse as extra_n_sparse,
    e.sparsity / nullif(o.sparsity, 0) as sparsity_ratio,
    e.n_sparse / nullif(o.n_sparse, 0) as ratio,
    p.value as published,
    ratio - p.value as difference,
    abs(ratio - p.value) <= p.precision as within
from study_models as e
inner join
    study_models as o
    on e.dataset = o.dataset and e.robust and o.robust and e.network = o.network || '_extra'
left join paper as p on p.finding = 'extra_data' and e.model_id = p.model_id
where e.n_sparse is not null and o.n_sparse is not null
order by e.dataset, o.network

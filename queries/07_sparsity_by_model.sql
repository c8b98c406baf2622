-- title: Sparse filters of every model
-- finding: Each of the 114 models has a published number of layers, of filters and of sparse filters.
-- paper: pca_dict.cpkl (n_samples); totals of sparsity.ipynb
-- expect: equal integers; the sharpest test of a build from the real checkpoints
with published as (
    select
        model_id,
        max(value) filter (where metric = 'n_layers')::bigint as n_layers,
        max(value) filter (where metric = 'n_filters')::bigint as n_filters,
        max(value) filter (where metric = 'n_sparse')::bigint as n_sparse
    from paper
    where finding = 'sparsity_by_model'
    group by model_id
)

select
    m.model_id,
    m.n_layers,
    m.n_filters,
    m.sparsity,
    m.sparsity_trained,
    m.n_sparse,
    p.n_sparse as published,
    m.n_sparse - p.n_sparse as difference,
    m.n_sparse = p.n_sparse and m.n_filters = p.n_filters and m.n_layers = p.n_layers as within
from models as m
left join published as p on m.model_id = p.model_id
order by m.dataset, m.model_id

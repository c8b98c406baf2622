-- title: Sparsity by its threshold
-- finding: That robust models are less sparse is no artefact of 1/100: the same from 1/1000 to 1/10.
-- origin: ours
-- expect: robust below standard beyond the first convolution at every threshold; 1/100 as stored
-- note: From linf and bn_scale alone, folded, over the models of pairs, each once; a null depth bin is all
--       of them. Layers whose weights are not finite are left out.
with chosen as (
    select distinct
        dataset,
        kind,
        model_id
    from members
),

counted as (
    select
        f.model_id,
        f.layer_index,
        count(*) as n_filters,
        count_if(f.length <= s.layer_linf / 1000) as n_1000,
        count_if(f.length <= s.layer_linf / 500) as n_500,
        count_if(f.length <= s.layer_linf / 200) as n_200,
        count_if(f.length <= s.layer_linf / 100) as n_100,
        count_if(f.length <= s.layer_linf / 50) as n_50,
        count_if(f.length <= s.layer_linf / 20) as n_20,
        count_if(f.length <= s.layer_linf / 10) as n_10
    from viewed_filters(null, ['folded']) as f
    inner join layer_scales(null, ['folded']) as s using (model_id, layer_index, weights)
    where s.layer_linf is not null
    group by all
)

select
    m.dataset,
    l.depth_bin,
    m.kind,
    sum(c.n_filters)::bigint as n_filters,
    sum(c.n_1000) / sum(c.n_filters) as sparsity_1000,
    sum(c.n_500) / sum(c.n_filters) as sparsity_500,
    sum(c.n_200) / sum(c.n_filters) as sparsity_200,
    sum(c.n_100) / sum(c.n_filters) as sparsity_100,
    sum(c.n_50) / sum(c.n_filters) as sparsity_50,
    sum(c.n_20) / sum(c.n_filters) as sparsity_20,
    sum(c.n_10) / sum(c.n_filters) as sparsity_10,
    sum(l.n_sparse) / sum(l.n_filters) as stored,
    sparsity_100 - stored as difference,
    difference = 0 as within
from counted as c
inner join layers as l on c.model_id = l.model_id and c.layer_index = l.layer_index and l.weights = 'folded'
inner join chosen as m on c.model_id = m.model_id
group by grouping sets ((m.dataset, l.depth_bin, m.kind), (m.dataset, m.kind))
having sum(c.n_filters) > 0
order by m.dataset, l.depth_bin nulls last, m.kind

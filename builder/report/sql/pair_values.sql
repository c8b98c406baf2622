-- Both members of every pair with their sparsity: a line of the paired figure.
select
    m.dataset,
    v.weights,
    m.pair,
    m.kind,
    v.value
from members as m
inner join model_values as v on m.model_id = v.model_id
where v.metric = 'sparsity'
order by m.dataset, v.weights, m.pair, m.kind

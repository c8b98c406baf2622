-- Sparsity of models and pairs, for the words of a figure.
with models_of as (
    select
        dataset,
        weights,
        count(*) as models,
        avg(value) filter (where kind = 'robust') as robust,
        avg(value) filter (where kind = 'standard') as standard
    from model_values
    where metric = 'sparsity'
    group by dataset, weights
),

pairs_of as (
    select
        m.dataset,
        v.weights,
        m.pair,
        max(v.value) filter (where m.kind = 'robust') as robust,
        max(v.value) filter (where m.kind = 'standard') as standard
    from members as m
    inner join model_values as v on m.model_id = v.model_id and v.metric = 'sparsity'
    group by m.dataset, v.weights, m.pair
)

select
    o.dataset,
    o.weights,
    o.models,
    o.robust,
    o.standard,
    count(p.robust) filter (where p.standard is not null) as pairs,
    count_if(p.robust < p.standard) as below
from models_of as o
left join pairs_of as p on o.dataset = p.dataset and o.weights = p.weights
group by o.dataset, o.weights, o.models, o.robust, o.standard
order by o.dataset, o.weights

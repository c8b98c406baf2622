-- Spearman's rank correlation of each metric with AutoAttack accuracy, over robust models.
with ranked as (
    select
        dataset,
        metric,
        weights,
        rank() over (partition by dataset, metric, weights order by value)
        + (count(*) over (partition by dataset, metric, weights, value) - 1) / 2.0 as value_rank,
        rank() over (partition by dataset, metric, weights order by autoattack_acc)
        + (count(*) over (partition by dataset, metric, weights, autoattack_acc) - 1)
        / 2.0 as autoattack_rank
    from model_values
    where kind = 'robust' and autoattack_acc is not null
),

correlated as (
    select
        dataset,
        metric,
        weights,
        count(*) as models,
        corr(value_rank, autoattack_rank) as spearman
    from ranked
    group by dataset, metric, weights
    having count(*) > 2
)

select
    c.dataset,
    c.metric,
    c.weights,
    c.models,
    c.spearman,
    if(c.weights = 'folded', p.value, null) as published
from correlated as c
left join paper as p
    on
        c.dataset = p.dataset
        and (
            (p.finding = 'metric_correlation' and c.metric = p.metric)
            or (p.finding = 'accuracy_correlation' and c.metric = 'clean_acc')
        )
where isfinite(c.spearman)
order by c.metric, c.dataset, c.weights

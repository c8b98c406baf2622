-- Spearman's rank correlation of each metric with AutoAttack accuracy, over robust models.
with correlated as (
    select
        dataset,
        metric,
        weights,
        count(*) as models,
        spearman(list(value), list(autoattack_acc)) as spearman
    from model_values
    where kind = 'robust' and autoattack_acc is not null
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
where c.spearman is not null
order by c.metric, c.dataset, c.weights

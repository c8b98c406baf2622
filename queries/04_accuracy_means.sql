-- title: Mean accuracies
-- finding: Mean clean accuracy falls from 92.2 / 72.7 / 78.5 % to 86.9 / 62.2 / 60.7 % with robustness.
-- paper: model_stats.ipynb cell 17
-- expect: clean accuracy of standard above robust, above AutoAttack accuracy
-- note: Per pair: a standard model shared by k pairs counts k times.
with measured as (
    select
        p.dataset,
        p.kind,
        unnest(['clean_acc', 'autoattack_acc']) as metric,
        unnest([m.clean_acc, m.autoattack_acc]) as accuracy
    from members as p
    inner join models as m on p.model_id = m.model_id
),

averaged as (
    select
        dataset,
        kind,
        metric,
        count(accuracy) as pairs,
        avg(accuracy) as accuracy
    from measured
    where kind = 'robust' or metric = 'clean_acc'
    group by all
)

select
    a.dataset,
    a.kind,
    a.metric,
    a.pairs,
    a.accuracy,
    p.value as published,
    a.accuracy - p.value as difference,
    abs(a.accuracy - p.value) <= p.precision as within
from averaged as a
left join paper as p
    on
        p.finding = 'accuracy_means'
        and a.dataset = p.dataset
        and a.kind = p.kind
        and a.metric = p.metric
order by a.dataset asc, a.kind desc, a.metric desc

-- title: Metrics and robust accuracy
-- finding: More robust models tend to less sparsity (-0.27 / -0.20 / -0.1) and, on CIFAR, more entropy.
-- paper: correlation.ipynb cells 13-14
-- expect: sparsity negative
-- note: Spearman over robust models. `mean_abs_cosine` is 1 - orthogonality: what the notebook's column
--       of that name really held; both signs are given.
with measured as (
    select
        dataset,
        autoattack_acc,
        unnest(['clean_acc', 'sparsity', 'variance_entropy', 'orthogonality', 'mean_abs_cosine']) as metric,
        unnest([clean_acc, sparsity, variance_entropy, orthogonality, 1 - orthogonality]) as value
    from study_models
    where robust and autoattack_acc is not null
),

correlated as (
    select
        dataset,
        metric,
        count(*) as models,
        spearman(list(value), list(autoattack_acc)) as spearman
    from measured
    where value is not null
    group by all
    having count(*) > 2
)

select
    c.dataset,
    c.metric,
    c.models,
    c.spearman,
    p.value as published,
    c.spearman - p.value as difference,
    abs(c.spearman - p.value) <= p.precision as within
from correlated as c
left join paper as p
    on
        p.finding = 'metric_correlation'
        and c.dataset = p.dataset
        and c.metric = p.metric
order by c.dataset, c.metric

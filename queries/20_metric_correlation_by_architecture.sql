-- title: Metrics and robust accuracy, per architecture
-- finding: Within an architecture the correlations change sign: no metric alone predicts robustness.
-- paper: correlation.ipynb cell 18
-- expect: both signs occur for each metric
-- note: Architectures with more than two robust models. The notebook printed the correlation of
--       1 - orthogonality (`mean_abs_cosine`) under the name of orthogonality.
with measured as (
    select
        dataset,
        architecture,
        autoattack_acc,
        unnest(['clean_acc', 'sparsity', 'variance_entropy', 'orthogonality', 'mean_abs_cosine']) as metric,
        unnest([clean_acc, sparsity, variance_entropy, orthogonality, 1 - orthogonality]) as value
    from study_models
    where robust and autoattack_acc is not null
),

correlated as (
    select
        dataset,
        architecture,
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
    c.architecture,
    c.metric,
    c.models,
    c.spearman,
    p.value as published,
    c.spearman - p.value as difference,
    abs(c.spearman - p.value) <= p.precision as within
from correlated as c
left join paper as p
    on
        p.finding = 'metric_correlation_by_architecture'
        and c.dataset = p.dataset
        and c.architecture = p.architecture
        and c.metric = p.metric
order by c.dataset, c.architecture, c.metric

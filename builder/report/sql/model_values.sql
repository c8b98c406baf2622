-- What is set against accuracy under AutoAttack: one row per model, metric and view.
select
    dataset,
    model_id,
    if(robust, 'robust', 'standard') as kind,
    weights,
    metric,
    value,
    clean_acc,
    autoattack_acc
from (
    select
        m.*,
        unnest([
            'folded', 'folded', 'folded', 'folded',
            'trained', 'trained', 'trained', 'trained'
        ]) as weights,
        unnest([
            'clean_acc', 'sparsity', 'variance_entropy', 'orthogonality',
            'clean_acc', 'sparsity', 'variance_entropy', 'orthogonality'
        ]) as metric,
        unnest([
            m.clean_acc, m.sparsity, m.variance_entropy, m.orthogonality,
            m.clean_acc, m.sparsity_trained, m.variance_entropy_trained, m.orthogonality_trained
        ]) as value
    from study_models as m
) as v
where isfinite(value)
order by dataset, metric, weights, model_id

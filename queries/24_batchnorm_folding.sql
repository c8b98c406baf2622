-- title: What folding BatchNorm changes
-- finding: The paper analysed filters as an ONNX export holds them: folded with their BatchNorm.
-- paper: generate_filter_db.ipynb (reads ONNX exports); no number is published
-- expect: sparsity and entropy change; orthogonality only where a folded scale is 0
-- note: Ours. Means over layers of both views (`trained`, `folded`) and the largest change of a layer;
--       `folded_layers` counts those behind which a BatchNorm was folded in.
with changes as (
    select
        t.dataset,
        if(m.robust, 'robust', 'standard') as kind,
        t.bn_layer is not null as has_bn,
        unnest(['sparsity', 'variance_entropy', 'orthogonality']) as metric,
        unnest([t.sparsity, t.variance_entropy, t.orthogonality]) as trained,
        unnest([f.sparsity, f.variance_entropy, f.orthogonality]) as folded
    from layers as t
    inner join layers as f on t.model_id = f.model_id and t.layer_index = f.layer_index
    inner join study_models as m on t.model_id = m.model_id
    where t.weights = 'trained' and f.weights = 'folded'
)

select
    dataset,
    kind,
    metric,
    count(*) as layers,
    count(*) filter (where has_bn) as folded_layers,
    avg(trained) as trained,
    avg(folded) as folded,
    avg(folded - trained) as mean_change,
    max(abs(folded - trained)) as largest_change
from changes
where trained is not null and folded is not null
group by all
order by dataset, metric, kind

-- One value per model, depth bin and view: what a depth figure's box is made of.
select
    l.dataset,
    l.model_id,
    l.weights,
    l.depth_bin,
    unnest(['sparsity', 'variance_entropy', 'orthogonality']) as metric,
    unnest([
        sum(l.n_sparse) / sum(l.n_filters) filter (where l.n_sparse is not null),
        sum(l.variance_entropy * (l.n_filters - l.n_sparse))
        / sum(l.n_filters - l.n_sparse) filter (where l.variance_entropy is not null),
        sum(l.orthogonality * l.out_channels)
        / sum(l.out_channels) filter (where l.orthogonality is not null)
    ]) as value
from layers as l
group by l.dataset, l.model_id, l.weights, l.depth_bin
order by l.dataset, l.model_id, l.weights, l.depth_bin, metric

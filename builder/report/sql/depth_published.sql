-- The paper's boxes, on the data sets of this release.
select
    dataset,
    replace(finding, '_by_depth', '') as metric,
    depth_bin,
    kind,
    max(value) filter (where metric = 'n_points')::bigint as n_points,
    max(value) filter (where metric = 'whisker_low') as whisker_low,
    max(value) filter (where metric = 'q1') as q1,
    max(value) filter (where metric = 'median') as median,
    max(value) filter (where metric = 'q3') as q3,
    max(value) filter (where metric = 'whisker_high') as whisker_high,
    max(value) filter (where metric = 'mean') as mean,
    max(value) filter (where metric = 'n_outliers')::bigint as n_outliers
from paper
where
    finding in ('sparsity_by_depth', 'variance_entropy_by_depth', 'orthogonality_by_depth')
    and coalesce(reading, '') <> 'layers alike'
    and dataset in (select m.dataset from models as m)
group by dataset, finding, depth_bin, kind
order by dataset, finding, depth_bin, kind

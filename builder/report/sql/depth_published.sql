-- The paper's boxes, on the data sets of this release.
select
    dataset,
    metric,
    depth_bin,
    kind,
    box['n_points']::bigint as n_points,
    box['whisker_low'] as whisker_low,
    box['q1'] as q1,
    box['median'] as median,
    box['q3'] as q3,
    box['whisker_high'] as whisker_high,
    box['mean'] as mean,
    box['n_outliers']::bigint as n_outliers
from published_boxes
where reading <> 'layers alike' and dataset in (select m.dataset from models as m)
order by dataset, metric, depth_bin, kind

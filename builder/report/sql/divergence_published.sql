-- The paper's divergences by depth, on the data sets of this release.
select
    dataset,
    depth_bin,
    value as divergence
from paper
where finding = 'divergence_by_depth' and dataset in (select m.dataset from models as m)
order by dataset, depth_bin

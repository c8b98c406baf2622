-- title: Accuracies of every pair
-- finding: Most robust models are less accurate on clean images than their counterpart (57 of 71).
-- paper: model_stats.ipynb cell 17 (meta.csv)
-- expect: clean_loss above 0 in most pairs
-- note: The cohort lists the published accuracies (percent); never measured is null. RobustBench has
--       since changed those of Sehwag2021Proxy and Sehwag2021Proxy_R18.
select
    p.dataset,
    p.architecture,
    r.network as robust_network,
    s.network as standard_network,
    s.clean_acc as standard_clean_acc,
    s.autoattack_acc as standard_autoattack_acc,
    r.clean_acc as robust_clean_acc,
    r.autoattack_acc as robust_autoattack_acc,
    s.clean_acc - r.clean_acc as clean_loss
from study_pairs as p
inner join models as r on p.robust_model_id = r.model_id
inner join models as s on p.standard_model_id = s.model_id
order by p.dataset asc, robust_autoattack_acc desc nulls last, robust_network asc

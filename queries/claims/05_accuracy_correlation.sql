-- about: models
-- needs: three robust models of one data set
select
    string_agg(format('{} {:.4f}', dataset, spearman), ', ' order by dataset) as shows,
    bool_and(spearman > 0) as holds
from answer

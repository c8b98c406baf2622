-- about: models
-- needs: counts of the paper's own models
select
    format('{} architectures', count(distinct architecture)) as shows,
    null::boolean as holds
from answer

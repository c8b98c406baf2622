-- about: build
-- needs: filters of the paper's own models
select
    format('equal for {} of {} models', count_if(within), count(within)) as shows,
    null::boolean as holds
from answer

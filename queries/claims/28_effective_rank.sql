-- about: weights
-- needs: pairs
select
    format(
        'higher in {} of {} pairs, by {:.2f} in the median',
        count_if(difference > 0), count(difference), median(difference)
    ) as shows,
    if(count(difference) > 0, 2 * count_if(difference > 0) > count(difference), null) as holds
from answer

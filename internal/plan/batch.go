package plan

import "time"

// Bounds on how long an answer may take.
const (
	Promptly  = 2 * time.Second  // for any request, until more was seen to be needed
	AtTheMost = 10 * time.Second // for one about a single key
)

// Batch is how many keys one request to a server is about, and how long its answer may take. Both follow what was seen of
// that server: a link or a disk may be a thousand times slower than another. An answer that does not come in time has
// the next request be about a quarter as many keys, and once it was about one key, wait twice as long. An answer
// that comes early has it be about twice as many.
type Batch struct {
	most   int
	size   int
	within time.Duration
}

// NewBatch begins with first keys, and never has more than most. Both are at least one.
func NewBatch(first, most int) Batch { return Batch{most: most, size: first, within: Promptly} }

// Size is how many keys the next request may be about, at least one.
func (b Batch) Size() int { return b.size }

// AtOnce is how many requests may be under way: two, so that the other server is never idle, or one where the link or that
// server is slow, which two would share.
func (b Batch) AtOnce() int {
	if b.size < b.most {
		return 1
	}
	return 2
}

// Within is how long its answer may take.
func (b Batch) Within() time.Duration { return b.within }

// Answered takes in that an answer about n keys has come after a time.
func (b *Batch) Answered(n int, after time.Duration) {
	b.within = min(max(Promptly, 4*after), AtTheMost)
	if n >= b.size && after <= Promptly/4 {
		b.size = min(2*n, b.most)
	}
}

// Late takes in that no answer about n keys has come in time. Others of the same size may have been under way.
func (b *Batch) Late(n int) {
	b.size = min(b.size, max(1, n/4))
	if n == 1 {
		b.within = min(2*b.within, AtTheMost)
	}
}

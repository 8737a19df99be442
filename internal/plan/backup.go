package plan

// Backups by schedule: when one is due, when it is late, and when one is tried again.

import (
	"time"

	"example.com/keyring/internal/meta"
)

// NextBackup is what a leader does that makes a backup every so often: Backup, Compare, or Wait. It goes by the last backup
// that was noted in the ring, by schedule or by hand, so that a new leader goes on where the old one stopped. Before there
// is a key it is Nothing.
func NextBackup(r *meta.Ring, s Situation, clock RingClock, every time.Duration) Action {
	if r.Active() == nil {
		return Action{Kind: Nothing}
	}
	at := s.Retry
	if r.Backup.Index > 0 { // else the first is due at once
		at = max(at, s.mono(clock.BackupTime(r).Add(every)))
	}
	do, at := s.onceClockIsRight(r, Action{Kind: Backup}, at)
	if at <= s.Mono {
		return do
	}
	return Action{Kind: Wait, Until: at}
}

// BackupTime is when the last backup was made, as this server can believe; zero if there is none.
func (s RingClock) BackupTime(r *meta.Ring) time.Time {
	if r.Backup.Index == 0 {
		return time.Time{}
	}
	return s.seen(r.Backup.Time)
}

// BackupLate is when the backup that comes next is late: a quarter of the period after it is due, which leaves time to make it
// and to try again. The first one is due when the first key is in use: at used. Zero is never.
func (s RingClock) BackupLate(r *meta.Ring, used time.Time, every time.Duration) time.Time {
	if last := s.BackupTime(r); !last.IsZero() {
		return last.Add(every + every/4)
	}
	if used.IsZero() {
		return time.Time{}
	}
	return used.Add(every / 4)
}

// BackupRetry is how long to wait after a backup has failed, the first of several in a row being number zero: a minute,
// doubling up to an hour or an eighth of the period, less up to a half by jitter in [0, 1).
func BackupRetry(attempt int, every time.Duration, jitter float64) time.Duration {
	const first, most = time.Minute, time.Hour
	d := most
	if attempt < 6 {
		d = min(most, first<<attempt)
	}
	d = min(d, max(every/8, time.Second))
	return d - time.Duration(jitter*float64(d/2))
}

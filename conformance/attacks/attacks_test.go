package attacks

import "testing"

// TestClusterUnderAttack has one cluster attacked in one way after the other. The first makes a voter of
// the fourth member, by lies: from then on the three honest servers are just a majority.
func TestClusterUnderAttack(t *testing.T) {
	c := newCluster(t)
	c.join(t)
	t.Cleanup(func() {
		for _, f := range c.table {
			t.Log(f)
		}
		t.Logf("%d dials of crowds", c.dials)
	})
	t.Run("a member that lies", c.lies)
	t.Run("certificates", c.certificates)
	t.Run("impostors", c.impostors)
	t.Run("crowds", c.crowds)
	t.Run("raft frames", c.raftFrames)
	t.Run("calls", c.calls)
	t.Run("replays", c.replays)
	if pace := c.pace(); pace > slower {
		t.Errorf("under attack rotations take %.2f times as long, at most %.1f are fine", pace, slower)
	} else {
		t.Logf("under attack rotations take %.2f times as long", pace)
	}
}

package docs_test

import (
	"slices"
	"strings"
	"testing"

	"example.com/keyring/internal/keyringtest"
)

// guarantees are the rows of the README's table, each with the tests that hold it: first what holds, then
// how far it goes.
var guarantees = []struct {
	holds string
	tests []string
}{
	{"No key encrypts or signs before a majority of the voters, asked at that moment, has said that they hold it: on disk, read back, unwrapped", []string{
		"TestI3NoStepOfARotationLosesAKey", "TestI3RecordedHoldsAloneActivateNothing", "TestHolderIsNobodyWhoseNamesDoNotSync",
		"TestActivationCountsTheVotersThatThereAre", "TestKeystoresWithoutMetadataAreAdopted",
		"TestI3NothingIsSealedAfterARestoreBeforeAMajorityHoldsTheKey",
	}},
	{"A ciphertext decrypts as long as one server has the key's file and a KEK that opens it", []string{
		"TestOneSurvivorOfThreeRecovers", "TestAnySnapshotAndAnyKeystoreRecover", "TestEachOfTwoKEKsOpensAlone",
		"TestServerWhoseKEKIsGoneFetchesAllKeysAgain", "TestEscrowIsTheWayBack",
	}},
	{"A change of members leaves each key with a majority of the new voters", []string{
		"TestRemoveServerPutsNoKeyAtRisk", "TestCheckMembersWantsAMajorityOfTheNewVoters", "TestKeysSurviveTheReplacementOfAllServers",
		"TestWipedNodeVotesOnlyOnceItHoldsEveryKey",
	}},
	{"No key that has encrypted data is removed before a scan has found nothing under it", []string{
		"TestI5NothingIsStoredUnderAKeyAfterItsLastScan", "TestRemoveMovesTheDataFirst", "TestRekeyGraceWaitsForWritersWithoutAFence",
		"TestForceSaysWhatIsLost",
	}},
	{"Only the leader encrypts and signs, and only under the active key", []string{
		"TestI4OnlyTheActiveKeySigns", "TestI4NewLeaderSealsAndSignsNothingBeforeItsBarrier",
		"TestI4NewLeaderSealsUnderNoKeyThatWasRetiredBeforeItsTerm", "TestLeaderThatIsCutOffSealsNoLongerThanItsLease",
		"TestAdmitTakesTheActiveKeysCiphertextsOnly",
	}},
	{"No key material, wrapped or not, is in raft's log or snapshots", []string{
		"TestI1MaterialIsInKeyFilesOnly", "TestRaftAloneHasNoJoinToken", "TestSealedSecretOpensForItsRecordAlone", "TestBackupOpensWithAgeAndTar",
	}},
	{"A lost key delays no other", []string{"TestI9LostKeyDelaysNoOther", "TestI6BadAnswersOnlyMoveOnToTheNextPeer"}},
	{"Key material is used only if it matches the key's metadata in raft", []string{
		"TestI6BadAnswersOnlyMoveOnToTheNextPeer", "TestEveryBitOfAKeyFileFlipped", "TestPublicKeyThatIsNotItsMaterialsIsUsedByNobody",
		"TestAdoptBelievesNobodysPublicKey",
	}},
	{"A token verifies until its `exp`, on every server that has caught up", []string{
		"TestNoTokenOutlivesItsKey", "TestServerWithoutMaterialVerifiesAll", "TestTokensThroughTheLifeOfAKey",
		"TestTokenIsValidWhereClocksAreBehind", "TestRevokedKeyVanishesAtTheActivation", "TestCompromisedLeavesAThiefNothing",
		"TestTokensOfARemovedKeyAreRefused", "TestAdoptAdmitsTokensOfAKeyAdoptedForDataOnly",
	}},
	{"A server that does not know what the others have committed says so, and denies no key", []string{
		"TestServerThatHasNotCaughtUpSaysSo", "TestServerThatHearsFromNoLeaderSaysSo", "TestJWKSOfAServerWithoutALeaderIsCachedForLessAndThenNotShown",
		"TestNothingIsAnOrphanBeforeTheServerHasCaughtUp",
	}},
	{"Waits do not depend on the wall clock, and times in raft do not go back", []string{
		"TestFirstKeyDoesNotWaitForTheClock", "TestRekeyDoesNotWaitForTheClock", "TestLeaderNoticesThatItsClockWasSet",
		"TestOneWrongClockHarmsNoRotation", "TestRotationGoesOnAfterClocksWereAhead", "TestUndoLastsByAWrongClock",
		"TestClocksOfMostServersAreRight",
	}},
	{"A server that was removed comes back only by `AddServer`, or by a token made after the removal", []string{
		"TestStolenServerStepByStep", "TestTokensEndBeforeTheirServerIsRemoved", "TestRemovedServerGetsNothing",
		"TestRemovedServerGetsNothingFromWhoIsBehind",
	}},
	{"No key file stops a start, and none that may be the only copy is replaced or deleted", []string{
		"TestBadFileIsSetAsideAndHidesNoOther", "TestKeyFileOfANewerVersionIsLeftAlone", "TestNewKeyReplacesNoFileThatIsNotInMemory",
		"TestRemovedKeyIsGoneAtOnceAndFromDiskAfterUndo",
	}},
	{"An error from `Decrypt` reveals nothing about the key or the plaintext", []string{
		"TestErrDecryptSaysNothingMore", "TestDecryptOfAnythingElseIsATypedErrorAndNoPlaintext", "TestMissingMaterialIsNamedAsSuch",
	}},
	{"A call ends with its context, at most a quarter of a second later", []string{
		"TestEveryCallOfAKeyringEndsWithItsContext", "TestEveryCallOfANodeEndsWithItsContext", "TestEveryFunctionEndsWithItsContext",
		"TestCallsEndWithTheirContextsWhileADiskHangs",
	}},
}

// TestReadmeGuaranteesHaveTests: each row of the table is here, and the tests that are named for it exist.
func TestReadmeGuaranteesHaveTests(t *testing.T) {
	_, section, _ := strings.Cut(keyringtest.Pages(t)["README.md"], "\n## Guarantees\n")
	section, _, _ = strings.Cut(section, "\n## ")
	var rows []string
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) == 4 && !strings.HasPrefix(line, "|---") && !strings.HasPrefix(line, "| what holds") {
			rows = append(rows, strings.TrimSpace(cells[1]))
		}
	}
	var want []string
	for _, g := range guarantees {
		want = append(want, g.holds)
	}
	if !slices.Equal(rows, want) {
		t.Errorf("the README guarantees\n%s\nand tests are named for\n%s", strings.Join(rows, "\n"), strings.Join(want, "\n"))
	}
	there := testNames(t)
	for _, g := range guarantees {
		if len(g.tests) == 0 {
			t.Errorf("%s: no test", g.holds)
		}
		for _, name := range g.tests {
			if !there[name] {
				t.Errorf("%s: there is no %s", g.holds, name)
			}
		}
	}
}

import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/** A map of objects that is filled, walked and changed in part. */
public class Heap {
    record Visit(int number, String note, int[] marks) {}

    public static void main(String[] arguments) {
        Map<Integer, List<Visit>> shops = new HashMap<>();
        for (int number = 0; number < 1_400_000; number++) {
            Visit visit = new Visit(number, "visit " + number + " to shop " + number % 1009, new int[] {number, number % 7});
            shops.computeIfAbsent(number % 1009, shop -> new ArrayList<>()).add(visit);
        }
        long sum = 0;
        for (int round = 0; round < 3; round++) {
            for (int shop = 0; shop < 1009; shop++) {
                List<Visit> visits = shops.get(shop);
                for (Visit visit : visits) sum = sum * 31 + visit.note().length() + visit.marks()[1];
                visits.set(round, new Visit(round, "changed " + round, new int[] {shop, round}));
            }
        }
        System.out.println(shops.size() + " " + sum);
    }
}

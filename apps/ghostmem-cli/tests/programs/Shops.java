// Subprocesses from threads, null checks that the machine makes by faults, and a map that
// the collector moves about: prints "ok".
import java.io.*;
import java.util.*;
import java.util.concurrent.*;

public class Shops {
    static class Item {
        int count;
        Item next;
    }

    // Hot, so that the check is a load that faults.
    static int sum(Item item) {
        int sum = 0;
        for (; item.count >= 0; item = item.next) sum += item.count;
        return sum;
    }

    static int nulls(int rounds) {
        Item first = new Item();
        first.count = 1;
        first.next = new Item();
        first.next.count = -1;
        Item open = new Item();
        int caught = 0;
        for (int i = 0; i < rounds; i++) {
            try {
                if (sum(i % 500 == 499 ? open : first) != 1) return -1;
            } catch (NullPointerException e) {
                caught++;
            }
        }
        return caught;
    }

    static String echo(int number) throws Exception {
        Process process = new ProcessBuilder("/bin/sh", "-c", "cat; exit 3").start();
        try (OutputStream in = process.getOutputStream()) {
            in.write(("word " + number).getBytes());
        }
        String line = new BufferedReader(new InputStreamReader(process.getInputStream())).readLine();
        if (process.waitFor() != 3) throw new Exception("exit code");
        return line;
    }

    public static void main(String[] words) throws Exception {
        ExecutorService threads = Executors.newFixedThreadPool(3);
        List<Future<String>> lines = new ArrayList<>();
        for (int i = 0; i < 9; i++) {
            int number = i;
            lines.add(threads.submit(() -> echo(number)));
        }
        Map<Integer, String> map = new HashMap<>();
        for (int i = 0; i < 150000; i++) map.put(i, "value " + i);
        if (nulls(60000) != 120) throw new Exception("null checks");
        for (int i = 0; i < 9; i++)
            if (!lines.get(i).get().equals("word " + i)) throw new Exception("subprocess " + i);
        threads.shutdown();
        System.gc();
        for (int i = 0; i < 150000; i++) if (!map.get(i).equals("value " + i)) throw new Exception("map");
        if (nulls(60000) != 120) throw new Exception("null checks after subprocesses");
        System.out.println("ok");
    }
}
